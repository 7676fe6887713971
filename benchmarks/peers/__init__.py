"""One module a peer, run in that peer's environment. These modules import nothing of the harness but `job`.

Each has two functions:

    prepare(job)        make of `job.checkpoint` what the peer runs, in `job.folder`
    load(job)           load it; returns `generate(new_tokens, emit)`, which continues `job.prompt` greedily, past any
                        end of sequence, and calls `emit` with each token as soon as it is known
"""
