"""From a prompt to a title and a picture. Imports adgen.model; knows no Ray and no storage."""
