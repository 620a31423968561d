"""Report, figures and verdict: how a run is told to people. Figures need matplotlib."""
