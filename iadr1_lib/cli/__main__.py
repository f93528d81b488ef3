"""`python -m iadr1_lib.cli`: how an engine starts its processes."""

from iadr1_lib.cli import main

main()
