"""Collects what `make bench` measured into one JSON document, on standard output: the rows
and ratios of benches/load; under `criterion` what criterion left (with the change to the run
before, if there was one) and its ratios; under `growth` what many keys and registrations
cost, and under `noisy_neighbour` what somebody else's calls do; and the machine.
"""

import json
import os
import pathlib
import sys

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", "target"))
CRITERION = TARGET / "criterion"
BENCH = pathlib.Path("target/bench")
LOAD = BENCH / "load.json"
GROWTH = ["keys", "wrapped_keys", "registrations"]

# What a figure means beside another one of the same run.
RATIOS = {
    "unwrap over the HSM alone": ("end_to_end/unwrap", "hsm/open_1_in_a_job"),
    "wrap over unwrap": ("end_to_end/wrap", "end_to_end/unwrap"),
    "64 callers at once over the HSM alone": ("end_to_end/unwrap_64_at_once", "hsm/open_1_in_a_job"),
    "stream over 64 callers at once": ("end_to_end/unwrap_on_a_stream", "end_to_end/unwrap_64_at_once"),
    "stream over the HSM alone": ("end_to_end/unwrap_on_a_stream", "hsm/open_64_in_a_job"),
    "worker processes over threads, one caller": ("processes/unwrap", "end_to_end/unwrap"),
    "worker processes over threads, 64 callers": ("processes/unwrap_64_at_once", "end_to_end/unwrap_64_at_once"),
    "worker processes over threads, batches of 64": (
        "processes/unwrap_in_batches_of_64",
        "end_to_end/unwrap_in_batches_of_64",
    ),
    "session copy over token object, one DEK in a job": ("hsm/open_1_in_a_job", "hsm/open_1_by_token_object"),
    "session copy over token object, 64 DEKs in a job": ("hsm/open_64_in_a_job", "hsm/open_64_by_token_object"),
    "batches over the HSM alone": ("end_to_end/unwrap_in_batches_of_64", "hsm/open_64_in_a_job"),
}


def main():
    document = read(LOAD) or {}
    document["machine"] = machine()
    document["criterion"] = criterion()
    document["growth"] = {name: figures for name in GROWTH if (figures := read(BENCH / f"{name}.json"))}
    document["noisy_neighbour"] = read(BENCH / "noisy_neighbour.json")
    if not document["criterion"]["benchmarks"] and "rows" not in document:
        sys.exit(f"collect: there is nothing in {CRITERION} and {LOAD}; run cargo bench first")
    json.dump(document, sys.stdout, indent=2)
    print()
    changes(document["criterion"]["benchmarks"])


def read(path):
    """None, if it was not measured."""
    return json.loads(path.read_text()) if path.exists() else None


def criterion():
    figures = {}
    for path in sorted(CRITERION.glob("*/*/new/estimates.json")):
        benchmark = json.loads((path.parent / "benchmark.json").read_text())
        estimates = json.loads(path.read_text())
        # criterion measures what one call takes; a call may be of many DEKs.
        elements = (benchmark.get("throughput") or {}).get("Elements", 1)
        figures[benchmark["full_id"]] = {
            "mean_ns": estimates["mean"]["point_estimate"] / elements,
            "median_ns": estimates["median"]["point_estimate"] / elements,
            "std_dev_ns": estimates["std_dev"]["point_estimate"] / elements,
            "per_second": 1e9 * elements / estimates["median"]["point_estimate"],
            "change_of_median": change(path.parent.parent / "change/estimates.json"),
        }
    ratios = {
        sentence: figures[one]["median_ns"] / figures[other]["median_ns"]
        for sentence, (one, other) in RATIOS.items()
        if one in figures and other in figures
    }
    return {"benchmarks": figures, "ratios": ratios}


def change(path):
    """To the run before: 0.1 is a tenth slower, with the bounds of 95 %; None at first."""
    if not path.exists():
        return None
    median = json.loads(path.read_text())["median"]
    bounds = median["confidence_interval"]
    return [median["point_estimate"], bounds["lower_bound"], bounds["upper_bound"]]


def changes(figures):
    """For people, on standard error."""
    print(f"{'benchmark':42} {'median':>12} {'change to the last run (95 %)':>34}", file=sys.stderr)
    for name, figure in figures.items():
        told = "first run"
        if figure["change_of_median"]:
            told = "{:+.1%} ({:+.1%} to {:+.1%})".format(*figure["change_of_median"])
        print(f"{name:42} {figure['median_ns']:>9,.0f} ns {told:>34}", file=sys.stderr)


def machine():
    models = [
        line.split(":", 1)[1].strip()
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cores": os.cpu_count(),
        "cpu": models[0] if models else "unknown",
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
