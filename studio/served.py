"""The studio behind its gate, as `sweetspot studio --share` and `--class` serve it. Alone on the loopback address it is `studio/app.py`."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware

from studio.gate import Gate

app = st.App(Path(__file__).resolve().parent / "app.py", middleware=[Middleware(Gate)])
