"""The operator's commands: submit and supervise a run, invite a site, run everything on one machine."""
