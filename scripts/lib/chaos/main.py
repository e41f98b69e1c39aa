"""Runs the experiments of scripts/chaos one after another and prints what came of them."""

import argparse
import fnmatch
import json
import sys
import time
import traceback

import attacks
import faults
from lab import Failed, Lab


def parse():
    parser = argparse.ArgumentParser(prog="scripts/chaos")
    parser.add_argument("--only", default="*", metavar="GLOB", help="only the experiments that match")
    parser.add_argument("--list", action="store_true", help="name them")
    parser.add_argument("--long", action="store_true", help="also those that take minutes")
    parser.add_argument("--soak", type=int, nargs="?", const=60, metavar="MINUTES", help="only the soak, for an hour")
    parser.add_argument("--json", metavar="FILE", help="the results as JSON too")
    parser.add_argument("--binary", required=True)
    return parser.parse_args()


def conduct(experiment, binary):
    """One experiment in namespaces of its own."""
    figures, verdict, why = {}, "holds", ""
    began = time.monotonic()
    lab = Lab(binary)
    try:
        lab.up()
        experiment(lab, figures)
    except Failed as failed:
        verdict, why = "FAILS", str(failed)
    except Exception:  # a fault of the experiment is shown, and the others go on
        verdict, why = "BROKEN", traceback.format_exc()
    finally:
        lab.down()
    return {
        "name": experiment.__name__, "pass line": experiment.__doc__, "verdict": verdict, "why": why,
        "figures": figures, "seconds": round(time.monotonic() - began, 1),
    }


def show(result):
    print(f"{result['verdict']:<6} {result['name']}  ({result['seconds']} s)")
    print(f"       {result['pass line']}")
    if result["figures"]:
        print("       " + ", ".join(f"{key}: {value}" for key, value in result["figures"].items()))
    if result["why"]:
        print("       " + result["why"].strip().replace("\n", "\n       "))
    sys.stdout.flush()


def main():
    arguments = parse()
    experiments = attacks.EXPERIMENTS + faults.EXPERIMENTS + (faults.LONG if arguments.long else [])
    if arguments.soak:
        experiments = [faults.soak(arguments.soak)]
    chosen = [each for each in experiments if fnmatch.fnmatch(each.__name__, arguments.only)]
    if arguments.list or not chosen:
        for each in experiments:
            print(f"{each.__name__:<40} {each.__doc__}")
        return 0 if arguments.list else 64
    results = []
    for each in chosen:
        results.append(conduct(each, arguments.binary))
        show(results[-1])
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=2)
    held = sum(result["verdict"] == "holds" for result in results)
    print(f"\n{held} of {len(results)} hold")
    return 0 if held == len(results) else 1


sys.exit(main())
