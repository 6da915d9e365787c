//! Two real endpoints over a simulated line, by behaviour.
