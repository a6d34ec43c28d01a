from ds_serve.catalogue.cli import main

raise SystemExit(main(prog="python -m ds_serve.catalogue"))
