"""report.html of one or several runs: run folders -> plain data -> figures -> one page. Nothing here imports torch."""
