"""The format: everything a decoder needs to turn bytes into latents, with numpy and constriction.

No torch, no picture files, no HTTP. `y_hat` leaves this package as integers; synthesis (g_s) turns
them into pixels elsewhere (service/engine).
"""
