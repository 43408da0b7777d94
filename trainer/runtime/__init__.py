"""The process and its machine: the terminal, files of a run, processes, devices, and errors of the machine.

Imports inside run down, like the package's own:

    launch                              Accelerate on the devices here
    precision                           where a model computes, and in which number format
    run_folder                          a stage's folder: its inputs, its files, and whether they are up to date
    lock  machine  verify               one run at a time; a full disk and its like; sizes and hashes of files
    processes                           Ctrl-C, and the loss of another process
    console                             the terminal
"""
