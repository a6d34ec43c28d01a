from ds_serve.catalogue.cli import main

raise SystemExit(main())
