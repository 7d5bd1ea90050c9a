"""Every target of speed and memory, measured beside the peers in one run; `benches/compare.sh` prepares this."""

import argparse
import pathlib
import signal
import sys
import traceback

PARTS = ("network", "classifier", "threads", "bandwidth", "fit", "path", "build")


def main():
    parser = argparse.ArgumentParser(prog="compare.sh", description=__doc__)
    for name in ("cellgate", "backbone", "inspection", "distance", "repository", "work"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and images")
    parser.add_argument("--images", type=int, help="images of the fit [default: 300, or 120 with --quick]")
    parser.add_argument("--only", help=f"parts, with commas between, of {', '.join(PARTS)}")
    parser.add_argument("--build-time", action="store_true", help="time a release build from clean as well")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there as well")
    args = parser.parse_args()
    parts = args.only.split(",") if args.only else PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; they are {', '.join(PARTS)}")

    # Only now, so that --help needs no package.
    import report
    from comparison import Comparison

    # Cells, models and served processes go away then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    about = report.machine()
    failed = False
    comparison = Comparison(args, args.work)
    for part in parts:
        print(f"measuring: {part}", file=sys.stderr)
        try:
            getattr(comparison, part)()
        except Exception as error:  # one peer that breaks must not cost the other figures
            traceback.print_exc()
            comparison.notes.append(f"{part} was not measured to its end: {error}")
            failed = True
    print(report.markdown(comparison.rows, about, comparison.facts, comparison.notes))
    if args.json:
        report.write_json(args.json, comparison.rows, about, comparison.facts, comparison.notes, comparison.raw)
    sys.exit(failed)


if __name__ == "__main__":
    main()
