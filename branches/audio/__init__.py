"""Recordings as samples at 16 kHz: decoding, resampling, the cache, and cancellation between channels."""

from branches.audio.decoding import Header, decode, read_clip, read_header, write_wav

__all__ = ["Header", "decode", "read_clip", "read_header", "write_wav"]
