"""What a run shows to people: a record per test query, quality by depth, times, and the report.

All of it comes from files in the run folder, so that it can be made again for a finished run.

Imports inside run down, like the package's own:

    write                               the files of an evaluation and of a report
    page  text                          report.html; report.md
    facts                               what a report tells
    charts  latency                     SVG; milliseconds by depth
    depths                              quality by depth
    queries                             a record per test query

Nothing is imported here, so that a finished run, whose report is there, ends at once.
"""
