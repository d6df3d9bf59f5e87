"""The bundled checkpoint `storybook`, its model card, and the texts that go with it. Data only."""
