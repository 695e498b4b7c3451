"""The command line: one file a verb. A verb's module is imported when it is used."""
