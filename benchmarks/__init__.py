"""gptport measured against its peers: `python -m benchmarks --help`. Not part of the package."""
