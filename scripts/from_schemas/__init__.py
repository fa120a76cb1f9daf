"""What is written from the methods' JSON Schemas: clients' types, and the reference of the documentation.

Schemas are those of `GET /v1/interventions`: of one intervention each, self-contained, without references.
"""
