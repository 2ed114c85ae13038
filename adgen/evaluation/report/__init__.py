"""An evaluation as one HTML page: charts, tables, differences."""
