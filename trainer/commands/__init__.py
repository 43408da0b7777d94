"""What talks to a person: the command line, and the commands with a dialogue or a table of their own.

Imports inside run down, like the package's own:

    cli                                 every command with its arguments
    compare  init  review  score        rerankers side by side; a first recipe; likely labels judged; files reranked
"""
