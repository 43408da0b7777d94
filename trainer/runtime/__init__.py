"""The process and its machine: the terminal, files of a run, processes, devices, and errors of the machine.

Imports inside run down, like the package's own:

    launch                              Accelerate on the available devices
    linear                              linear layers for scoring in bf16 on a CPU
    precision                           the device and the number format that a model computes in
    run_folder                          a stage's folder: inputs, files, up-to-date check
    lock  machine  verify               one run at a time; errors such as a full disk; sizes and hashes of files
    processes                           Ctrl-C, and the loss of another process
    console  numbers                    the terminal; indices spread evenly, and finite numbers
"""
