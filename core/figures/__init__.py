"""Figures of the pages: records in, plotly figures out. No streamlit, no colours of their own."""
