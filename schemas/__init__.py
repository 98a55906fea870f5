"""What the tables mean. Plain Python: imports nothing else of this project, and only `spark.py` imports pyspark."""
