"""`python -m tutelage` is `tutelage`: the recipe starts each stage this way, needing no command on the PATH."""

from tutelage.cli import main

if __name__ == "__main__":
    main()
