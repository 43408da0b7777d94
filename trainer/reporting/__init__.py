"""Reports of a run for people: a record for each test query, quality by depth, latency, and the report itself.

All of it is computed from files in the run folder, so that it can be written again for a finished run.

Imports inside run down, like the package's own:

    write                               the files of an evaluation and of a report
    page  text                          report.html; report.md
    facts                               the content of a report
    charts  latency                     SVG charts; milliseconds by depth
    depths                              quality by depth
    queries                             a record for each test query

Nothing is imported here, so that a finished run whose report exists ends at once.
"""
