"""Floor 1: fields. A network with a path and an output kind becomes a `Denoiser`; an `Ask` evaluates it, once per
question.
"""
