"""`tandem serve`: from this process, which waits for neither torch nor Ray, or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.base.usage import parse
from trainer.observe.progress import quiet_libraries
from trainer.serve.serve_arguments import ServeArguments


def main(arguments: Sequence[str], verbose: bool) -> int:
    """Answer until told to end."""
    parsed = parse(ServeArguments, "tandem serve", arguments)
    quiet_libraries(verbose)
    if parsed.address is None:
        from trainer.serve.serving import serve

        serve(parsed)
        return 0
    from cluster.serving.nodes import check_installed

    check_installed()
    from cluster.serving.ray_serve import serve_on_ray

    serve_on_ray(parsed, verbose)
    return 0
