"""Run once for each task of an execution, with what that task was given. What it raises makes the task fail."""

from greet import greet
from task import parameters


def main() -> None:
    given = parameters()
    print(greet(given.get("name", "nobody")))


if __name__ == "__main__":
    main()
