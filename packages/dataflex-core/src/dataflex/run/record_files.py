"""The files of a record that lie in the run's folder itself, but for its configuration."""

from dataflex.core.files import LAST_SCORES, METRICS, ROW_SOURCES, ROWS, RUN, SEGMENTS, SOURCES, TRACE, WHY

FILES = (TRACE, METRICS, SEGMENTS, ROWS, WHY, LAST_SCORES, ROW_SOURCES, SOURCES, RUN)
