"""The portal: pages for people, served by the agent: a face of the API's use-cases, no way around."""
