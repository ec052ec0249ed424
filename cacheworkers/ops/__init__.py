"""Operations: the command line, doctor, metrics and the exporter."""
