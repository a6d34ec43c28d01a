"""No vLLM: a tiny OpenAI server under its name, for what a real one cannot show quickly.

It prints the lines of vLLM's start-up, has a process beside it as vLLM has its engine, and fails,
dies and hangs when it is told to.
"""
