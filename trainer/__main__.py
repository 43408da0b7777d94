"""`python -m trainer RECIPE` is `train RECIPE`; launchers of several processes need a module."""

from trainer.cli import train_command

if __name__ == "__main__":
    train_command()
