"""The hybrid layout: queried records in a database, appended records in files (``file_store_base_dir``)."""
