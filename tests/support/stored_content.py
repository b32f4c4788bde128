"""Bytes to store."""

from __future__ import annotations

import hashlib
import os

CONTENT = os.urandom(100_000)

SHA256 = hashlib.sha256(CONTENT).hexdigest()
