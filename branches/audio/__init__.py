"""Recordings as samples at 16 kHz: decoding, resampling, the cache, and cancellation between channels."""

from branches.audio.decoding import decode, read_clip

__all__ = ["decode", "read_clip"]
