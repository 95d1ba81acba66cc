//! Command line: one file per verb, arguments in, table out, no logic.
