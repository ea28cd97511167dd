"""The DeepMI report: `evidence` reads, `measures` computes, `charts` draws, `sections` explains, `page` writes."""
