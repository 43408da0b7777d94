"""Reports of a run for people: a record for each test query, quality by depth, latency, and the report itself.

All of it is computed from files in the run folder, so that it can be written again for a finished run.

Imports inside run down, like the package's own:

    write                               the files of an evaluation and of a report
    page  text                          report.html; report.md
    made_queries  robustness            queries made from documents; seeds, guard sets, teachers by endpoint, a judge
    facts                               the content of a report
    rows                                the rows of the table
    probabilities                       the calibration as rows and as a reliability diagram
    charts  latency  meanings           SVG charts; milliseconds by depth; metrics explained
    depths  json_lines                  quality by depth; files that people may have edited
    queries                             a record for each test query

Names are imported when they are first used, so that a finished run whose report exists ends at once.
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.reporting.latency import measure_latency as measure_latency
    from trainer.reporting.latency import seconds_of_latency as seconds_of_latency
    from trainer.reporting.queries import read_queries as read_queries
    from trainer.reporting.queries import read_rankings as read_rankings
    from trainer.reporting.write import PAGE as PAGE
    from trainer.reporting.write import refresh_report as refresh_report
    from trainer.reporting.write import write_details as write_details
    from trainer.reporting.write import write_report as write_report

__getattr__ = face(__name__)
