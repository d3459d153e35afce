"""Collects what criterion left under target/criterion into one JSON document, on
standard output: the figures, ratios of figures of the same run, and the machine.
"""

import json
import os
import pathlib
import sys

CRITERION = pathlib.Path("target/criterion")

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
    "batches over the HSM alone": ("end_to_end/unwrap_in_batches_of_64", "hsm/open_64_in_a_job"),
}


def main():
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
        }
    if not figures:
        sys.exit(f"collect: there is nothing under {CRITERION}; run cargo bench first")
    ratios = {
        sentence: figures[one]["median_ns"] / figures[other]["median_ns"]
        for sentence, (one, other) in RATIOS.items()
        if one in figures and other in figures
    }
    document = {"benchmarks": figures, "ratios": ratios, "machine": machine()}
    json.dump(document, sys.stdout, indent=2)
    print()


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
