"""Which requests the next micro-batch serves, and how much of a long history.

The rule. The oldest request that waits is always in. Behind it those that have come by then are taken in order of
arrival, among the ``LOOKAHEAD * max_batch`` requests from the oldest on, where

- no earlier request of the same user waits or is in the micro-batch;
- the profile cuts histories into chunks (``chunk_tokens``): the new history tokens of all that ride along are no more
  than a chunk, so that they do not wait for one another's histories;
- the cost model says that taking it in is not slower than serving it by itself.

A request is thus passed by fewer than ``LOOKAHEAD * max_batch`` later ones: nobody starves. A history with more new
tokens than a chunk is computed a chunk in each micro-batch in which somebody rides along with it, its pages pinned, and
the rest at once when nobody does; all at once where KV has no room for it.
"""

from __future__ import annotations

from helm_gym.kernels.jit import kernel
from real_backend.memory import kv_cache
from real_backend.memory.layout import BATCH
from real_backend.memory.ledger import ANSWERED, FREE_AT_S, WAITING
from real_backend.memory.pricing import batch_load, batch_ms

LOOKAHEAD = 4


@kernel
def _same_user_before(requests, u, first, r, progress):
    """Whether a request of the same user, from ``first`` on, has not been answered before ``r``."""
    for other in range(first, r):
        if progress[other] != ANSWERED and requests.user[u, other] == requests.user[u, r]:
            return True
    return False


@kernel
def _propose(m, requests, u, r, done, b, plan, rules):
    """Puts request ``r`` in place ``b`` of the plan, as it is expected to be served. Returns its new history tokens."""
    length = requests.length[u, r]
    start = done
    if done == WAITING:
        start = kv_cache.expected(m, requests.user[u, r], requests.version[u, r], length, rules)
    plan.request[b], plan.cached[b], plan.stop[b] = r, start, length
    plan.asked[b] = requests.candidate_count[u, r]
    return length - start


@kernel
def choose(m, requests, u, ledger, limit, plan, rules):
    """The next micro-batch of unit ``u``: fills plan.request. Returns how many requests it has; 0: all are answered."""
    progress, arrival = ledger.progress[u], ledger.arrival_s[u]
    first, number = ledger.cursor[u, 0], requests.number[u, 0]
    while first < number and progress[first] == ANSWERED:
        first += 1
    ledger.cursor[u, 0] = first
    if first == number:
        return 0
    plan.request[0] = first
    if limit == 1:
        return 1
    start_s = max(arrival[first], ledger.clock[u, FREE_AT_S])
    chunk, size, beside = rules.chunk_tokens, 1, 0
    new = _propose(m, requests, u, first, progress[first], 0, plan, rules)
    if 0 < chunk < new:
        plan.stop[0] = plan.cached[0] + chunk
        plan.asked[0] = 0
    cost_ms = batch_ms(rules, 1, *batch_load(rules, 1, plan.cached, plan.stop, plan.asked))
    r = first + 1
    while size < limit and r < min(number, first + LOOKAHEAD * limit) and arrival[r] <= start_s:
        if progress[r] == WAITING and not _same_user_before(requests, u, first, r, progress):
            new = _propose(m, requests, u, r, WAITING, size, plan, rules)
            if chunk == 0 or beside + new <= chunk:
                last = size
                alone_ms = batch_ms(
                    rules, 1, *batch_load(rules, 1, plan.cached[last:], plan.stop[last:], plan.asked[last:])
                )
                with_ms = batch_ms(rules, size + 1, *batch_load(rules, size + 1, plan.cached, plan.stop, plan.asked))
                if with_ms <= cost_ms + alone_ms:
                    size += 1
                    beside += new
                    cost_ms = with_ms
        r += 1
    return size


@kernel
def pin(m, requests, u, size, plan):
    """Nobody in the micro-batch is evicted for the sake of another who is."""
    for b in range(size):
        m.used_batch[requests.user[u, plan.request[b]]] = m.n[BATCH]
