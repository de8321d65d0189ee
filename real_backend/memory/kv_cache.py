"""The KV cache: whole users in pages of tokens, evicted least recently used first; a host tier behind it.

Users of the present micro-batch are pinned. A request that finds too few pages stores what fits, or nothing: it is
then computed in full from its own tokens, and its scores are the same.
"""

from __future__ import annotations

from helm_gym.kernels.jit import kernel
from real_backend.memory.layout import (
    BATCH,
    EVICTED_PAGES,
    HOST_NEXT,
    KV,
    N_KV_FREE,
    OFFLOAD_TOKENS,
    OFFLOADS,
    UPLOAD_TOKENS,
)

HIT, COLD_HIT, MISS, SHADOW_MISS, UPLOAD = 0, 1, 2, 3, 4
RECOMPUTE, COPY, CHEAPEST = 0, 1, 2


@kernel
def unlink(newer, older, user):
    """Takes ``user`` out of the ring of recency."""
    a, b = older[user], newer[user]
    newer[a] = b
    older[b] = a


@kernel
def link_newest(newer, older, user):
    """Puts ``user`` into the ring as the one used last; the sentinel is the ring's last entry."""
    sentinel = newer.shape[0] - 1
    a = older[sentinel]
    older[user], newer[user] = a, sentinel
    newer[a] = user
    older[sentinel] = user


@kernel
def _pages_of(tokens, tokens_per_page):
    return (tokens + tokens_per_page - 1) // tokens_per_page


@kernel
def _free_user(m, user, tokens_per_page):
    """The user's pages go back to KV's free ones."""
    for p in range(_pages_of(m.cached_length[user], tokens_per_page)):
        m.kv_free[m.n[N_KV_FREE]] = m.user_pages[user, p]
        m.user_pages[user, p] = -1
        m.n[N_KV_FREE] += 1
    m.cached_length[user] = 0
    unlink(m.newer, m.older, user)


@kernel
def _offload(m, plan, user, tokens_per_page):
    """Copies a leaving user down to the host tier, over whoever lies in its next place."""
    place = m.host_place[user]
    if place < 0:
        places = m.host_user.shape[0]
        place = m.n[HOST_NEXT]
        for _ in range(places):
            if m.host_batch[place] != m.n[BATCH]:
                break
            place = (place + 1) % places
        if m.host_batch[place] == m.n[BATCH]:
            return  # this micro-batch reads every place
        m.n[HOST_NEXT] = (place + 1) % places
        if m.host_user[place] >= 0:
            m.host_place[m.host_user[place]] = -1
        m.host_user[place] = user
        m.host_place[user] = place
    elif m.host_version[user] == m.cached_version[user] and m.host_length[user] == m.cached_length[user]:
        return  # the copy there is still the same
    m.host_version[user] = m.cached_version[user]
    m.host_length[user] = m.cached_length[user]
    k = plan.counts[OFFLOADS]
    plan.offload_place[k] = place
    pages = _pages_of(m.cached_length[user], tokens_per_page)
    for p in range(plan.offload_pages.shape[1]):
        plan.offload_pages[k, p] = m.user_pages[user, p] if p < pages else -1
    plan.counts[OFFLOADS] = k + 1
    plan.counts[OFFLOAD_TOKENS] += m.cached_length[user]


@kernel
def evict_oldest_user(m, plan, rules):
    """The least recently used user leaves for the shadow list; False where there is none or all are pinned."""
    sentinel = m.newer.shape[0] - 1
    user = m.newer[sentinel]
    while user != sentinel and m.used_batch[user] == m.n[BATCH]:  # no more of them than requests in a micro-batch
        user = m.newer[user]
    if user == sentinel:
        return False
    if m.host_user.shape[0] > 0:
        _offload(m, plan, user, rules.tokens_per_page)
    # The clock before his own pages: a larger cache keeps him only if they fit as well.
    m.user_evicted[user] = m.n[EVICTED_PAGES]
    m.n[EVICTED_PAGES] += _pages_of(m.cached_length[user], rules.tokens_per_page)
    m.evicted_version[user] = m.cached_version[user]
    _free_user(m, user, rules.tokens_per_page)
    return True


@kernel
def take_page(m, plan, rules):
    """A free page of KV's, evicting where there is none; -1 where all users are pinned."""
    if m.n[N_KV_FREE] == 0 and not evict_oldest_user(m, plan, rules):
        return -1
    m.n[N_KV_FREE] -= 1
    return m.kv_free[m.n[N_KV_FREE]]


@kernel
def gain_page(m, page):
    """KV takes ``page``, free."""
    m.owner[page] = KV
    m.kv_free[m.n[N_KV_FREE]] = page
    m.n[N_KV_FREE] += 1


@kernel
def _among_coldest(m, user, rules):
    """Whether ``user`` lies, with all his pages, within the shadow depth of the cold end of the ring."""
    sentinel = m.newer.shape[0] - 1
    at = m.newer[sentinel]
    pages = _pages_of(m.cached_length[at], rules.tokens_per_page)
    while pages <= rules.shadow_pages:
        if at == user:
            return True
        at = m.newer[at]
        if at == sentinel:
            return False
        pages += _pages_of(m.cached_length[at], rules.tokens_per_page)
    return False


@kernel
def _worth_copying(cached, length, rules):
    """Whether copying ``cached`` tokens up is faster than computing them again."""
    if rules.kv_miss != CHEAPEST:
        return rules.kv_miss == COPY
    copy_ms = rules.latency_ms + cached * rules.kv_token_ms
    return copy_ms < cached * (rules.per_token_ms + rules.per_pair_ms * length)


@kernel
def expected(m, user, version, length, rules):
    """History tokens that ``admit`` would find cached, or copy up, if it came now and found room."""
    if m.cached_length[user] > 0 and m.cached_version[user] == version:
        return min(m.cached_length[user], length)
    copied = m.host_length[user]
    there = m.host_place[user] >= 0 and m.host_version[user] == version and copied <= length
    return copied if there and _worth_copying(copied, length, rules) else 0


@kernel
def admit(m, plan, b, user, version, length, rules):
    """Request ``b`` of the batch: what is cached of its history, pages for the rest, recency.

    Writes plan.cached[b], plan.stored[b] and plan.upload_place[b]. Returns the outcome: HIT; COLD_HIT (a KV cache
    smaller by the shadow depth would have missed); MISS; SHADOW_MISS (a larger one would have hit); UPLOAD.
    """
    if m.cached_length[user] > 0 and m.cached_version[user] != version:
        _free_user(m, user, rules.tokens_per_page)
    # More than the request's history where an older request comes late, from a node that was lost: all of it stays.
    held = m.cached_length[user]
    cached = min(held, length)
    outcome = MISS
    if held > 0:
        outcome = COLD_HIT if _among_coldest(m, user, rules) else HIT
        unlink(m.newer, m.older, user)
    elif m.evicted_version[user] == version and m.n[EVICTED_PAGES] - m.user_evicted[user] <= rules.shadow_pages:
        outcome = SHADOW_MISS
    plan.upload_place[b] = -1
    m.used_batch[user] = m.n[BATCH]
    have = _pages_of(held, rules.tokens_per_page)
    wanted = _pages_of(length, rules.tokens_per_page)
    while have < wanted:
        page = take_page(m, plan, rules)
        if page < 0:
            break
        m.user_pages[user, have] = page
        have += 1
    stored = max(held, min(length, have * rules.tokens_per_page))
    if held == 0 and m.host_place[user] >= 0 and m.host_version[user] == version:
        copied = m.host_length[user]
        if copied <= stored and _worth_copying(copied, length, rules):
            cached = copied
            plan.upload_place[b] = m.host_place[user]
            m.host_batch[m.host_place[user]] = m.n[BATCH]
            plan.counts[UPLOAD_TOKENS] += copied
            outcome = UPLOAD
    m.cached_length[user] = stored
    m.cached_version[user] = version
    if stored > 0:  # whoever is in the ring holds a page: walks along it, and evictions, end because of that
        link_newest(m.newer, m.older, user)
    plan.cached[b] = cached
    plan.stored[b] = min(stored, length)
    return outcome
