"""One module a server that answers many streams at once.

Each has:

    running(job)                            a context manager: the server with `job.checkpoint`, ready; gives where it listens
    ask(where, prompt, new_tokens, emit)    continues token ids greedily, past any end of sequence; calls `emit` with how
                                            many tokens have come, as soon as they are there
    step_seconds(where)                     what its loop spent in each part of its steps since it began; {} if it does not say
"""
