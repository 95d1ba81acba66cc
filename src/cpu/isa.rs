//! Instruction sets: what this CPU has, chosen once at start-up.
