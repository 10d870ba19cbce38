"""The format: bytes <-> latents, with numpy and constriction alone.

No torch, no image files, no HTTP. Latents y_hat leave this package as integers; service/runtime
turns them into pixels with the synthesis g_s. service/docs/format.md specifies the format.
"""
