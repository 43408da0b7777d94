"""One file for each stage, in the order in which they run. Stages exchange files, and never import each other.

data                                read the user's files into a collection
retrieve                            first-stage candidates for every judged query
mine                                hard negatives
train                               train, and select the best checkpoint on dev
distil                              train a standard checkpoint on the tuned model's scores
evaluate                            evaluate every system; the verdict of the release gate
gate                                refuse to export or push a model, by the verdict
export                              write and verify the model folder
push                                upload the model folder
"""
