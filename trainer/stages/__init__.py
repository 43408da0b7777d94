"""One file for each stage, in the order of the path. They exchange files, and never import each other.

data                                the user's files to a collection
retrieve                            candidates for every judged query
mine                                hard negatives
train                               the best checkpoint on dev
distil                              a standard checkpoint taught by the tuned model
evaluate                            every system measured; the verdict
gate                                whether the model may leave
export                              the folder that leaves
push                                the upload
"""
