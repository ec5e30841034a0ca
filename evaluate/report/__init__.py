"""What people look at: page, tables, charts, gallery."""
