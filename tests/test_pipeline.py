"""The whole path on tiny models, as a user runs it."""


def test_tiny_recipe_runs_and_a_second_run_skips_everything(command, recipe_file, tmp_path):
    first = command(recipe_file, "--runs", tmp_path / "runs", "--force")
    assert first.returncode == 0, first.stdout + first.stderr
    print(first.stdout)
    second = command(recipe_file, "--runs", tmp_path / "runs", "--force")
    print(second.stdout)
    assert second.stdout.count("(stands)") == 6
