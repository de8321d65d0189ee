"""``helm-gym warm``: compiles all kernels beforehand."""

from __future__ import annotations

from helm_gym.cli.common import Json, Progress, Quiet, print_json, say


def warm(as_json: Json = False, quiet: Quiet = False) -> None:
    """Compile all kernels for this machine, so that nothing else has to wait for it; a minute or two on two cores.

    They are kept in ~/.cache/helm-gym, or where HELM_GYM_CACHE says. What is there already takes seconds.

    \b
    Example:
      helm-gym warm
      HELM_GYM_CACHE=/fast/disk helm-gym warm --json
    """
    from helm_gym import warm as warming
    from helm_gym.kernels import kernel_cache

    progress = Progress(quiet)
    folder = kernel_cache.folder()
    with progress.stage("warm") as tick:
        warmed = warming.warm(tick)
    for part, problem in warmed.failed.items():
        progress.say(f"Not compiled, since this machine cannot use it: {part}. {problem}")
    if as_json:
        told = {"compiled": len(warmed.kernels), "seconds": warmed.seconds, "folder": str(folder)}
        return print_json(told | {"failed": warmed.failed})
    what = f"Compiled {len(warmed.kernels)} kernels" if warmed.kernels else "All kernels were compiled already"
    say(f"{what} in {warmed.seconds:.0f} s; they are kept in {folder}.")
