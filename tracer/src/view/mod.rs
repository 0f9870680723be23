//! What a person or a program sees. `model` turns domain values into plain text fields once, with what `names` calls them; `text`
//! and `json` only print them, so both carry the same facts. `gather` reads what the tracers of many nodes printed
//! and joins it, `fleet` shows that; `compare` sets two ways side by side; `report`
//! makes a page of a capture; `top` draws on a terminal.

pub mod attached;
pub mod cluster;
pub mod compare;
pub mod fleet;
pub mod gather;
pub mod json;
pub mod model;
pub mod names;
pub mod probe;
pub mod report;
pub mod stage;
pub mod table;
pub mod text;
pub mod top;
