"""The bundled checkpoint `storybook`, its model card and its texts. Data only."""
